"""Start-up hook: lets stock nnU-Net find the classes of nnunet-softseg by name.

nnU-Net finds trainers, planners, preprocessors, label managers and resampling functions by scanning its own
folders with one function, `nnunetv2.utilities.find_class_by_name.recursive_find_python_class`. This hook
waits until that module is imported and wraps the function: a name of ours comes from
`nnunet_softseg.registry`, any other name goes to nnU-Net's own function. Where nnU-Net ends on a file that it
does not find in the place of a model of ours, the package says in one line which models are there; likewise
of a fold that is no number, a trainer of `nnUNet_extTrainer` that does not load, and a dataset with soft
labels that nnU-Net cannot plan.

Three more things are waited for. nnU-Net's commands after prediction (ensembles, cross-validation,
post-processing) ask for no class of ours: what they do with folders of soft maps goes through
`nnunet_softseg.inference.nnunet_patches`. So does which folds nnU-Net's predictor has opened, as it is while
it opens them that it asks for the first class of ours. And checkpoints of ours name this package behind the
name of their configuration (`NEEDS`), which nnU-Net prints where neither the package nor this hook is
installed.

Rules that keep it harmless, since every Python process of the environment loads this file:
- standard library only, and at start only modules that Python has loaded by then anyway;
- nothing of nnunet_softseg is imported until one of its names is asked for, so that a broken package hurts no
  one else;
- an error in the hook itself leaves nnU-Net as it was; an error in our own class is shown as it is;
- `NNUNET_SOFTSEG_NO_HOOK=1` switches it off.
"""

import os
import sys

TARGET = "nnunetv2.utilities.find_class_by_name"
FUNCTION = "recursive_find_python_class"
SWITCH = "NNUNET_SOFTSEG_NO_HOOK"
# Every name in the registry carries one of these marks and no name of nnU-Net does: a test checks both. They
# tell our names from all others without importing our package.
MARKS = ("SoftSeg", "SoftLabel", "soft_map", "nnUNetTrainerDemo")
# Functions of nnU-Net that work on folders of predictions or models, by module. They are those of nnU-Net
# unless a folder among their arguments holds soft maps, or a model of them.
AFTER_PREDICTION = {
    "nnunetv2.ensembling.ensemble": ("merge_files", "ensemble_folders", "ensemble_crossvalidations"),
    "nnunetv2.evaluation.accumulate_cv_results": ("accumulate_cv_results",),
    "nnunetv2.postprocessing.remove_connected_components": (
        "determine_postprocessing",
        "apply_postprocessing_to_folder",
    ),
}
PLANS = "nnunetv2.utilities.plans_handling.plans_handler"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data"
PLANNING = "nnunetv2.experiment_planning.plan_and_preprocess_api"
NEEDS = " [of nnunet-softseg "
"""What follows the name of the configuration in checkpoints of ours; the trainer writes it."""


def install():
    """Put the finder in place, once; True if the hook is on. Never raises."""
    try:
        if os.environ.get(SWITCH, "") not in ("", "0"):
            return False
        if not any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        for name in _TARGETS:
            if name in sys.modules:
                _wrap(sys.modules[name])
    except Exception:  # a start-up file has to let Python start
        return False
    return True


_TARGETS = (TARGET, PLANS, PREDICTOR, *AFTER_PREDICTION)


class _Finder:
    """Meta-path finder that answers for a few modules and leaves it to the other finders to locate them."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname not in _TARGETS:
            return None
        try:
            spec = _spec_from_others(fullname, path, target)
            if spec is not None and hasattr(spec.loader, "exec_module"):
                spec.loader = _Loader(spec.loader)
        except Exception:  # the ordinary import goes on without us
            return None
        return spec


def _spec_from_others(fullname, path, target):
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        if type(finder).__name__ == _Finder.__name__ or find_spec is None:
            continue
        spec = find_spec(fullname, path, target)
        if spec is not None:
            return spec
    return None


class _Loader:
    """Loads the module with its own loader, hands the loader back to it, then wraps its functions."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            _wrap(module)
        except Exception:  # nnU-Net as it was is better than no nnU-Net
            return


def _wrap(module):
    name = getattr(module, "__name__", TARGET)
    if name == PLANS:
        _replace(module.PlansManager, "get_configuration", _without_needs)
    if name == PREDICTOR:
        _replace(module.nnUNetPredictor, "initialize_from_trained_model_folder", _described)
    for function in AFTER_PREDICTION.get(name, ()):
        _replace(module, function, _for_soft_folders)
    if name == TARGET:
        _explain_missing_models()
        _replace(module, FUNCTION, _make_wrapper)


def _replace(owner, name, wrap):
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "nnunet_softseg_original"):
        return
    import functools

    wrapper = wrap(original)
    # Module and qualified name included: whoever pickles nnU-Net's function must be able to pickle this one.
    functools.update_wrapper(wrapper, original)
    wrapper.nnunet_softseg_original = original
    setattr(owner, name, wrapper)
    # Callers hold the function by `from ... import`. Those loaded before (a late install) get it, too.
    for other_name, other in list(sys.modules.items()):
        if other_name.startswith("nnunetv2.") and getattr(other, name, None) is original:
            setattr(other, name, wrapper)


def _without_needs(original):
    def get_configuration(self, configuration_name):
        return original(self, configuration_name.partition(NEEDS)[0])

    return get_configuration


def _described(original):
    def initialize_from_trained_model_folder(self, *args, **kwargs):
        # Folds from an iterator are read twice.
        args = [tuple(given) if hasattr(given, "__next__") else given for given in args]
        kwargs = {
            name: tuple(given) if hasattr(given, "__next__") else given for name, given in kwargs.items()
        }
        original(self, *args, **kwargs)
        plans = self.plans_manager.plans
        if plans.get("label_manager") == "SoftLabelManager" and "nnunet_softseg" in plans:
            from nnunet_softseg.inference import nnunet_patches

            # A package older than this file, as after another branch was checked out, has none.
            describe = getattr(nnunet_patches, "describe_opened", None)
            if describe is not None:
                describe(original, self, *args, **kwargs)

    return initialize_from_trained_model_folder


def _for_soft_folders(original):
    def function(*args, **kwargs):
        if not any(_is_soft(path) for path in _paths(args, kwargs)):
            return original(*args, **kwargs)
        from nnunet_softseg.inference import nnunet_patches

        return getattr(nnunet_patches, original.__name__)(original, *args, **kwargs)

    return function


def _paths(args, kwargs):
    for value in (*args, *kwargs.values()):
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (str, os.PathLike)):
                yield os.fspath(each)


def _is_soft(path):
    # A folder of predictions of ours has a report, that of a model of ours plans that name our label manager.
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if os.path.isfile(os.path.join(folder, "softseg.json")):
        return True
    try:
        with open(os.path.join(folder, "plans.json"), encoding="utf-8") as file:
            return '"SoftLabelManager"' in file.read()
    except (OSError, ValueError):
        return False


def _make_wrapper(original):
    def recursive_find_python_class(*args, **kwargs):
        name = kwargs.get("class_name", args[1] if len(args) > 1 else None)
        scanned = kwargs.get("current_module", args[2] if len(args) > 2 else None)
        if _could_be_ours(name, scanned):
            from nnunet_softseg import registry

            if name in registry.CLASSES:
                return registry.find(name)
        return original(*args, **kwargs)

    return recursive_find_python_class


def _explain_missing_models():
    shown_by = sys.excepthook
    if hasattr(shown_by, "nnunet_softseg_original"):
        return

    def show(kind, error, traceback):
        try:
            mistake = _missing_model(error) or _mistake_in_training(error)
        except Exception:  # the error itself says more than one on the way to explain it
            mistake = None
        if mistake is None:
            shown_by(kind, error, traceback)
        else:
            print(f"nnunet-softseg: error: {mistake}", file=sys.stderr)

    show.nnunet_softseg_original = shown_by
    sys.excepthook = show


def _missing_model(error):
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return None
    # nnU-Net's results: <dataset>/<trainer>__<plans>__<configuration>/<file>, or fold_<fold>/<file> in it.
    dataset = os.path.dirname(os.path.dirname(error.filename))
    names = [error.filename, *(os.listdir(dataset) if os.path.isdir(dataset) else ())]
    if not any(mark in name for name in names for mark in MARKS):
        return None
    from nnunet_softseg.inference.predict import explain_missing_model

    return explain_missing_model(error)


def _mistake_in_training(error):
    # The fold is read, and the trainer looked for, before anything of ours is imported.
    asked = any(mark in word for word in sys.argv for mark in MARKS)
    if not asked and not os.environ.get("nnUNet_extTrainer") and not _plans_soft_labels(error):
        return None
    from nnunet_softseg.run import explain

    return explain(error)


def _plans_soft_labels(error):
    traceback, raw = error.__traceback__, os.environ.get("nnUNet_raw", "")
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        number = frame.f_locals.get("dataset_id")
        if frame.f_globals.get("__name__") == PLANNING and isinstance(number, int) and os.path.isdir(raw):
            names = [name for name in os.listdir(raw) if name.startswith(f"Dataset{number:03d}_")]
            return any(os.path.isdir(os.path.join(raw, name, "softLabelsTr")) for name in names)
    return False


def _could_be_ours(name, scanned):
    # `scanned` is None for folders of nnUNet_extTrainer; other packages are scanned, too: not our business.
    if not (isinstance(name, str) and isinstance(scanned, str) and scanned.startswith("nnunetv2.")):
        return False
    return any(mark in name for mark in MARKS)
