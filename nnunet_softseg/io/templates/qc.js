// Which subjects are shown: those whose name or reasons hold the text, and that have warnings if only these are wanted.
const search = document.querySelector("#search");
const implausible = document.querySelector("#implausible");
const entries = [...document.querySelectorAll("[data-subject]")];
const count = document.querySelector("#count");
const filter = () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const entry of entries) {
    const text = entry.dataset.subject.toLowerCase();
    entry.hidden = (implausible.checked && !("look" in entry.dataset)) || !words.every(word => text.includes(word));
    if (!entry.hidden && entry.tagName === "SECTION") shown++;
  }
  count.textContent = `${shown} shown`;
};
search.addEventListener("input", filter);
implausible.addEventListener("change", filter);
filter();
