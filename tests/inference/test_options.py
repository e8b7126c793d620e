"""Options of a prediction: by arguments, by environment variables, and both."""

import pickle

import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference.case_record import KEY, VARIABLES, CaseRecord, PredictionOptions
from nnunet_softseg.network import openvino_network

LOCALIZE, LARGEST = VARIABLES["localize"], VARIABLES["largest_piece"]


def test_without_anything_the_options_are_the_defaults() -> None:
    assert PredictionOptions.from_environment({}) == PredictionOptions("auto", "auto", False, False)
    assert PredictionOptions.from_environment(dict.fromkeys(VARIABLES.values(), "")) == PredictionOptions()


def test_each_option_has_a_variable() -> None:
    words = ("torch-float32", "never", "1", "1", "1", "1")
    options = PredictionOptions.from_environment(dict(zip(VARIABLES.values(), words, strict=True)))
    assert options == PredictionOptions("torch-float32", "never", True, True, True, True)
    assert VARIABLES["backend"] == openvino_network.VARIABLE


def test_an_argument_overrules_the_environment_and_says_so() -> None:
    environment = {LOCALIZE: "never", LARGEST: "0", VARIABLES["backend"]: "torch"}
    options = PredictionOptions.from_environment(
        environment, localize="always", largest_piece=True, backend="torch", discard_implausible=False
    )
    assert (options.localize, options.largest_piece, options.backend) == ("always", True, "torch")
    assert options.overruled == (
        "--localize always overrules NNUNET_SOFTSEG_LOCALIZE=never",
        "--largest-piece overrules NNUNET_SOFTSEG_LARGEST_PIECE=0",
    )


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({LOCALIZE: "sometimes"}, {}, f"{LOCALIZE}: expected one of always, auto, never, found sometimes"),
        ({}, {"localize": "maybe"}, "--localize, .*: expected one of always, auto, never, found maybe"),
        ({LARGEST: "yes"}, {}, f"{LARGEST}: expected 1 .* or 0, found 'yes'"),
        (
            {"NNUNET_SOFTSEG_KEEP_UNLIKELY": "1"},
            {},
            "expected it unset.*unset it; NNUNET_SOFTSEG_DISCARD_IMPLAUSIBLE=1",
        ),
    ],
)
def test_a_wrong_value_is_told(environment: dict[str, str], arguments: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PredictionOptions.from_environment(environment, **arguments)


def test_options_travel_with_the_record_of_a_case_to_another_process() -> None:
    options = PredictionOptions(largest_piece=True, overruled=("a note",))
    record = CaseRecord(options, box=((0, 3), (1, 2)), seconds={"forward": 1.0})
    properties = pickle.loads(pickle.dumps({KEY: record}))
    assert CaseRecord.of(properties) == record
    assert CaseRecord.of(properties).as_json()["overruled"] == ["a note"]
    assert CaseRecord.of({}).options == PredictionOptions()


def test_what_ran_the_network_is_noted_once_and_in_its_order() -> None:
    record = CaseRecord()
    for name in ("openvino float32", "openvino float32", "torch float32", "openvino float32"):
        record.add_backend(name)
    assert record.as_json()["backend"] == "openvino float32, torch float32"
