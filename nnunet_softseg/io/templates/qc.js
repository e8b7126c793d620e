// Which subjects are shown: those whose name or reasons hold the text, and that have doubts if only these are wanted.
const search = document.querySelector("#search");
const doubtful = document.querySelector("#doubtful");
const entries = [...document.querySelectorAll("[data-subject]")];
const count = document.querySelector("#count");
const filter = () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const entry of entries) {
    const text = entry.dataset.subject.toLowerCase();
    entry.hidden = (doubtful.checked && !("look" in entry.dataset)) || !words.every(word => text.includes(word));
    if (!entry.hidden && entry.tagName === "SECTION") shown++;
  }
  count.textContent = `${shown} shown`;
};
search.addEventListener("input", filter);
doubtful.addEventListener("change", filter);
filter();

for (const box of document.querySelectorAll("[data-class]")) {
  const apply = () => document.body.classList.toggle(box.dataset.class, box.checked === ("on" in box.dataset));
  box.addEventListener("change", apply);
  apply();
}

const large = document.querySelector("#large");
const enlarge = event => {
  const view = event.target.closest(".card .view");
  if (!view || (event.type === "keydown" && event.key !== "Enter")) return;
  large.replaceChildren(view.cloneNode(true));
  large.showModal();
};
document.addEventListener("click", enlarge);
document.addEventListener("keydown", enlarge);
large.addEventListener("click", () => large.close());
