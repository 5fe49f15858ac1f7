// Marks what belongs to a scan everywhere on the page: by typing, and by pointing at it.
const form = document.querySelector(".find");
const marked = [...document.querySelectorAll("[data-scan]")];
form.hidden = false;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => {
  const words = form.elements.find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = new Set();
  for (const element of marked) {
    const name = element.dataset.scan.toLowerCase();
    const hit = words.every((word) => name.includes(word));
    element.classList.toggle("dim", !hit);
    if (hit) found.add(name);
  }
  form.querySelector("output").textContent = words.length
    ? `${found.size} ${found.size === 1 ? "scan" : "scans"}` : "";
});
const point = (event) => {
  const scan = event.target.closest?.("[data-scan]")?.dataset.scan;
  for (const element of marked) {
    element.classList.toggle("lit", element.dataset.scan === scan);
  }
};
for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, point);
