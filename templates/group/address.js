// The page's address holds the choice, order, page and open scan after the #, where it survives reload and Back
// for file: too. A # without = is a place in the page.
const controls = () => [...document.querySelectorAll(
  "#tools select, #tools input, #across, #up, #harmonized-tissue, #harmonized-protocol",
)];
const keyOf = (control) => control.id || `is ${control.dataset.category}`;
const valueOf = (control) => (control.type === "checkbox" ? (control.checked ? "yes" : "no") : control.value);
let defaults = null;

function writeAddress() {
  const parts = new URLSearchParams();
  for (const control of controls()) {
    if (valueOf(control) !== defaults.get(keyOf(control))) parts.set(keyOf(control), valueOf(control));
  }
  if (shownKind !== "tissue") parts.set("plots", shownKind);
  if (state.page) parts.set("page", state.page + 1);
  if (opened != null) parts.set("scan", scans.name[opened]);
  const bare = location.href.split("#")[0];
  if (String(parts)) history.replaceState(null, "", `${bare}#${parts}`);
  else if (location.hash.includes("=")) history.replaceState(null, "", bare);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const control of controls()) {
    const value = parts.get(keyOf(control)) ?? defaults.get(keyOf(control));
    if (control.type === "checkbox") control.checked = value === "yes";
    else if (control.tagName !== "SELECT" || [...control.options].some((option) => option.value === value)) control.value = value;
  }
  if ($("least").value || $("most").value) document.querySelector(".more").open = true;
  const kind = parts.get("plots") ?? "tissue";
  if (kind !== shownKind && document.querySelector(`[data-kind="${CSS.escape(kind)}"]`)) drawPanels(kind);
  state.page = Math.max(0, (Number(parts.get("page")) || 1) - 1);
  state.brushed = null;
  const wanted = indexOf.get(parts.get("scan"));
  if (wanted == null) $("detail").close();
  choose({ keepPage: true });
  if (wanted != null) open(wanted);
  if (Object.keys(data.measures).length) relation();
}
