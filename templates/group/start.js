// Fill the controls, wire them, draw.
function fill(id, values, first = "all") {
  $(id).replaceChildren(make("option", { value: "*" }, first),
    ...values.map((value) => make("option", { value }, value || "none")));
  $(id).closest("label").hidden = values.length < 2;
}
fill("contrast", contrasts);
fill("session", unique(scans.session));
fill("flag", ["fail", "warn", "pass"].filter((flag) => scans.flag.includes(flag)));
$("rating").replaceChildren(...[["*", "all"], ["", "not rated"], ...RATINGS.map((r) => [r, r])]
  .map(([value, text]) => make("option", { value }, text)));
for (const [name, values] of Object.entries(data.categories)) {
  const select = make("select", { "data-category": name }, make("option", { value: "*" }, "all"),
    ...unique(values).map((value) => make("option", { value }, value || "n/a")));
  $("categories").append(make("label", {}, `${name} `, select));
}
$("sort").replaceChildren(...Object.entries(sorters).map(([value, { title }]) => make("option", { value }, title)));
$("sort").value = "flag";
const options = () => Object.keys(data.measures).map((name) => make("option", { value: name }, measureTitle(name)));
$("across").replaceChildren(...options());
$("up").replaceChildren(...options());
$("across").value = ["age", "TIV"].find((name) => name in data.measures) ?? $("across").options[0]?.value;
$("up").value = "GM" in data.measures ? "GM" : $("up").options[0]?.value;
$("colour").replaceChildren(make("option", { value: "" }, "protocol"),
  ...Object.keys(data.categories).map((value) => make("option", { value }, value)));
$("colour").closest("label").hidden = !Object.keys(data.categories).length;
function drawLanes() {
  const swatches = hueNames().map((value, place) => make("span", { class: `contrast contrast-${place % 6}` }, value));
  const plain = hueNames() === contrasts;
  $("lanes").replaceChildren(...(plain ? ["Left to right: "] : [`Left to right: ${contrasts.join(", ")}. ${$("colour").value}: `]), ...swatches);
}

const actions = {
  clear: clearChoice,
  previous: () => { state.page -= 1; choose({ keepPage: true }); $("scans-title").scrollIntoView(); },
  next: () => { state.page += 1; choose({ keepPage: true }); $("scans-title").scrollIntoView(); },
  before: () => step(-1),
  after: () => step(1),
  export: exportRatings,
};
document.addEventListener("click", (event) => {
  const target = event.target.closest?.("button");
  if (!target) return;
  const { do: action, open: index, rate: rating, of, kind } = target.dataset;
  if (action) actions[action]();
  else if (index) open(Number(index));
  else if (kind) drawPanels(kind);
  else if (rating) rate(Number(of), { rating: ratingOf(Number(of)).rating === rating ? "" : rating });
});
$("tools").addEventListener("submit", (event) => event.preventDefault());
let waiting = 0;
$("tools").addEventListener("input", ({ target }) => {
  if (target.type === "file") return;
  if (["outlines", "table"].includes(target.id)) { drawWall(); return; }
  clearTimeout(waiting);
  waiting = setTimeout(choose, target.type === "search" || target.type === "number" ? 120 : 0);
});
$("import").addEventListener("change", async ({ target }) => {
  if (target.files[0]) importRatings(await target.files[0].text());
  target.value = "";
});
for (const id of ["across", "up"]) $(id).addEventListener("change", relation);
$("note").addEventListener("change", () => { if (opened != null) rate(opened, { note: $("note").value }); });
$("detail").addEventListener("close", () => {
  const card = document.querySelector(`#wall [data-open="${opened}"]`);
  opened = null;
  card?.focus();
});
for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, ({ target }) => {
    const index = target.closest?.("#wall [data-index]")?.dataset.index;
    if (index != null) lit(Number(index));
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  const here = opened ?? Number(event.target.closest?.("#wall [data-index]")?.dataset.index ?? NaN);
  const cards = [...document.querySelectorAll("#wall [data-open]")];
  const place = cards.findIndex((one) => Number(one.dataset.open) === here);
  const columns = cards.length ? Math.max(1, Math.round($("wall").clientWidth / cards[0].clientWidth)) : 1;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  if (event.key === "o") { $("outlines").checked = !$("outlines").checked; drawWall(); return; }
  if (Number.isNaN(here)) return;
  if (["0", "1", "2", "3"].includes(event.key)) rate(here, { rating: ["", ...RATINGS][event.key] });
  else if (event.key === "n" && opened != null) { event.preventDefault(); $("note").focus(); }
  else if (opened != null && event.key in moves) step(Math.sign(moves[event.key]));
  else if (event.key in moves && cards[place + moves[event.key]]) {
    event.preventDefault();
    cards[place + moves[event.key]].focus();
  }
});
listeners.push(drawWall, drawOutliers, drawDetail, drawCharts, drawLanes);
drawPanels("tissue");
if (Object.keys(data.measures).length) relation();
choose();
document.documentElement.dataset.ready = "yes";
