// NiiVue over the coarse copies of a scan and its labels; started when first opened.
function explore(explorer) {
  const canvas = explorer.querySelector("canvas");
  const buttons = [...explorer.closest("section").querySelectorAll(".viewer [data-index]")];
  const where = explorer.querySelector("output");
  if (!document.createElement("canvas").getContext("webgl2")) {
    const words = document.createElement("p");
    words.textContent = "The viewer needs WebGL2, which this browser does not support. The slices above show the same scan.";
    explorer.querySelector(".room").replaceWith(words);
    return;
  }
  const names = new Map(buttons.map((button) => [Number(button.dataset.index), button.title]));
  const blend = explorer.querySelector("[data-blend]");
  const view = new niivue.Niivue({
    logLevel: "error", dragAndDropEnabled: false, scrollRequiresFocus: true, showLegend: false, show3Dcrosshair: true,
    crosshairColor: [0.8, 0.8, 0.8, 0.7], crosshairWidth: 0.5,
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    onLocationChange: ({ mm, values }) => {
      const tissue = names.get(Math.round(values[1]?.value)) ?? "no tissue";
      where.textContent = `${[...mm].slice(0, 3).map(Math.round).join(", ")} mm: ${tissue}`;
    },
  });
  const colors = () => {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0] };
    for (const button of buttons) {
      const color = parseInt(button.dataset.color.slice(1), 16);
      table.R.push(color >> 16);
      table.G.push(color >> 8 & 255);
      table.B.push(color & 255);
      table.A.push(button.getAttribute("aria-pressed") === "true" ? 255 : 0);
      table.I.push(Number(button.dataset.index));
    }
    return table;
  };
  const start = async () => {
    await view.attachToCanvas(canvas);
    const load = (name, opacity) => niivue.NVImage.loadFromBase64({ base64: explorer.dataset[name], name: `${name}.nii.gz`, opacity });
    const image = await load("image", 1);
    const labels = await load("labels", blend.value / 100);
    labels.setColormapLabel(colors());
    view.addVolume(image);
    view.addVolume(labels);
    blend.addEventListener("input", () => view.setOpacity(1, blend.value / 100));
    explorer.closest("section").addEventListener("click", ({ target }) => {
      if (!target.closest("[data-index], [data-all]")) return;
      labels.setColormapLabel(colors());
      view.updateGLVolume();
    });
    explorer.addEventListener("click", ({ target }) => {
      const chosen = target.closest("[data-view]");
      if (!chosen) return;
      for (const button of explorer.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button === chosen));
      view.setSliceType(chosen.dataset.view === "head" ? view.sliceTypeRender : view.sliceTypeMultiplanar);
    });
    explorer.dataset.ready = "yes";
  };
  start().catch((error) => { where.textContent = `The viewer cannot start: ${error.message}`; });
}

for (const explorer of document.querySelectorAll(".explorer")) {
  explorer.addEventListener("toggle", () => explore(explorer), { once: true });
}
