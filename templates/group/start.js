// Fill the controls, wire them, draw.
function fill(id, values, first = "all") {
  $(id).replaceChildren(make("option", { value: "*" }, first),
    ...values.map((value) => make("option", { value }, value || "none")));
  $(id).closest("label").hidden = values.length < 2;
}
fill("protocol", protocols);
fill("session", unique(scans.session));
fill("flag", ["fail", "warn", "pass"].filter((flag) => scans.flag.includes(flag)));
$("rating").replaceChildren(...[["*", "all"], ["", "not rated"], ...RATINGS.map((r) => [r, r]), ["differ", "raters differ"]]
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
if (data.site in data.categories) $("colour").value = data.site;
$("colour").closest("label").hidden = !Object.keys(data.categories).length;
function drawLanes() {
  const signs = { circle: "●", triangle: "▲", diamond: "◆", rect: "■" };
  const swatches = () => hueNames().map((value, place) => make("span", { class: `hue hue-${place % 6}` }, `${signs[hueSymbol(place)]} ${value}`));
  const plain = hueNames() === protocols;
  $("lanes").replaceChildren(...(plain ? ["Left to right: "] : [`Left to right: ${protocols.join(", ")}. ${$("colour").value}: `]), ...swatches());
  $("harmonized-lanes")?.replaceChildren(...(plain ? [] : [`${$("colour").value}: `]), ...swatches());
}
if (data.harmonized.column) {
  const harmonized = tissues.filter((name) => `${name}_harmonized_mL` in data.measures);
  $("harmonized-tissue").replaceChildren(...harmonized.map((value) => make("option", { value }, value)));
  $("harmonized-tissue").value = harmonized.includes("GM") ? "GM" : harmonized[0];
  const kept = new Set(everyone.filter((i) => data.values[`${harmonized[0]}_harmonized_mL`][i] != null).map((i) => scans.protocol[i]));
  $("harmonized-protocol").replaceChildren(...protocols.filter((name) => kept.has(name)).map((value) => make("option", { value }, value)));
  $("harmonized-protocol").closest("label").hidden = kept.size < 2;
  for (const id of ["harmonized-tissue", "harmonized-protocol"]) $(id).addEventListener("change", () => { drawHarmonization(); writeAddress(); });
}
$("rater").value = raters.name;
$("tags").append(...TAGS.map((tag) => make("label", { class: "check" }, make("input", { type: "checkbox", "data-tag": tag }), ` ${tag}`)));
$("legend").append(...data.labels.map(({ name, title, color }) => make("li", { title },
  make("span", { class: "swatch", style: `background:${color}` }), name)));

function switchOutlines() {
  $("outlines").checked = !$("outlines").checked;
  drawWall();
  writeAddress();
}

const actions = {
  clear: clearChoice,
  previous: () => { state.page -= 1; choose({ keepPage: true }); $("scans-title").scrollIntoView(); },
  next: () => { state.page += 1; choose({ keepPage: true }); $("scans-title").scrollIntoView(); },
  before: () => step(-1),
  after: () => step(1),
  export: exportRatings,
  undo: undoRating,
  outlines: switchOutlines,
};
document.addEventListener("click", (event) => {
  const target = event.target.closest?.("button");
  if (!target) return;
  const { do: action, open: index, rate: rating, of, kind, sort, bulk } = target.dataset;
  if (action) actions[action]();
  else if (index) open(Number(index));
  else if (kind) { drawPanels(kind); writeAddress(); }
  else if (sort) { sortBy(sort); document.querySelector(`[data-sort="${CSS.escape(sort)}"]`)?.focus(); }
  else if (bulk != null) rateChosen(bulk);
  else if (rating) rateAndMoveOn(Number(of), ratingOf(Number(of)).rating === rating ? "" : rating);
});
// Places in the page are reached without losing what the address holds.
document.addEventListener("click", (event) => {
  const place = event.target.closest?.('a[href^="#"]');
  const target = place && $(decodeURIComponent(place.hash.slice(1)));
  if (!target) return;
  event.preventDefault();
  target.scrollIntoView();
  target.tabIndex = -1;
  target.focus({ preventScroll: true });
});
$("tools").addEventListener("submit", (event) => event.preventDefault());
let waiting = 0;
$("tools").addEventListener("input", ({ target }) => {
  if (target.type === "file") return;
  if (["outlines", "table"].includes(target.id)) { drawWall(); writeAddress(); return; }
  clearTimeout(waiting);
  waiting = setTimeout(choose, target.type === "search" || target.type === "number" ? 120 : 0);
});
$("import").addEventListener("change", async ({ target }) => {
  for (const file of target.files) importRatings(await file.text(), file.name);
  target.value = "";
});
$("rater").addEventListener("change", () => { // cards stay: one of them may be what is clicked next
  raters.rename($("rater").value.trim());
  showRatings();
});
for (const id of ["across", "up"]) $(id).addEventListener("change", () => { relation(); writeAddress(); });
$("note").addEventListener("change", () => { if (opened != null) rate(opened, { note: $("note").value }); });
$("tags").addEventListener("change", () => {
  const tags = [...document.querySelectorAll("[data-tag]:checked")].map((box) => box.dataset.tag).join(", ");
  if (opened != null) rate(opened, { tags });
});
$("detail").addEventListener("close", () => {
  const last = opened;
  opened = null;
  writeAddress();
  focusCard(last);
});
magnifier($("detail-picture"));
for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, ({ target }) => {
    const index = target.closest?.("#wall [data-index]")?.dataset.index;
    if (index != null) lit(Number(index));
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  if ($("detail-picture").contains(event.target) && event.key.startsWith("Arrow")) return; // scrolls the slices
  const here = opened ?? Number(event.target.closest?.("#wall [data-index]")?.dataset.index ?? NaN);
  const cards = [...document.querySelectorAll("#wall [data-open]")];
  const place = cards.findIndex((one) => Number(one.dataset.open) === here);
  const columns = cards.length ? Math.max(1, Math.round($("wall").clientWidth / cards[0].clientWidth)) : 1;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  if (event.key === "o") { switchOutlines(); return; }
  if (Number.isNaN(here)) return;
  if (["0", "1", "2", "3"].includes(event.key)) rateAndMoveOn(here, ["", ...RATINGS][event.key]);
  else if (event.key === "n" && opened != null) { event.preventDefault(); $("note").focus(); }
  else if (opened != null && event.key in moves) step(Math.sign(moves[event.key]));
  else if (event.key in moves && cards[place + moves[event.key]]) {
    event.preventDefault();
    cards[place + moves[event.key]].focus();
  }
});
// The bar at the top of the window covers nothing that is jumped to.
new ResizeObserver(([{ target }]) => {
  const height = getComputedStyle(target).position === "sticky" ? target.offsetHeight : 0;
  document.documentElement.style.setProperty("--bar", `${height}px`);
}).observe($("tools"));
listeners.push(drawWall, drawOutliers, drawDetail, drawCharts, drawLanes, writeAddress);
defaults = new Map(controls().map((control) => [keyOf(control), valueOf(control)]));
drawPanels("tissue");
if (data.harmonized.column) drawHarmonization();
readAddress();
addEventListener("hashchange", () => { if (location.hash.includes("=") || !location.hash) readAddress(); });
if (location.hash.length > 1 && !location.hash.includes("=")) $(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
showRatings();
document.documentElement.dataset.ready = "yes";
