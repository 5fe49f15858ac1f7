// NiiVue over the coarse copies of a scan and its labels, or over chosen files; started when first opened.
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
  const brain = new Set(buttons.filter((button) => "brain" in button.dataset).map((button) => Number(button.dataset.index)));
  const blend = explorer.querySelector("[data-blend]");
  let solid = false; // in 3-D the brain alone is shown
  let image = null;
  let labels = null;
  let whole = null; // voxels of the whole head
  const view = new niivue.Niivue({
    logLevel: "error", dragAndDropEnabled: false, scrollRequiresFocus: true, showLegend: false, show3Dcrosshair: false,
    crosshairColor: [0.8, 0.8, 0.8, 0.7], crosshairWidth: 0.5,
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    onLocationChange: ({ mm, values }) => {
      const tissue = names.get(Math.round(values[1]?.value)) ?? "no tissue";
      where.textContent = `${[...mm].slice(0, 3).map(Math.round).join(", ")} mm: ${tissue}`;
    },
  });

  const colors = () => {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0] };
    for (const button of buttons) {
      const color = parseInt(button.dataset.color.slice(1), 16);
      const shown = button.getAttribute("aria-pressed") === "true" && (!solid || "brain" in button.dataset);
      table.R.push(color >> 16);
      table.G.push(color >> 8 & 255);
      table.B.push(color & 255);
      table.A.push(shown ? 255 : 0);
      table.I.push(Number(button.dataset.index));
    }
    return table;
  };

  const extracted = () => {
    if (whole.length !== labels.img.length) return whole; // other grids: no telling what is brain
    const outside = image.global_min ?? 0;
    return whole.map((value, at) => (brain.has(Math.round(labels.img[at])) ? value : outside));
  };

  const draw = () => {
    labels.setColormapLabel(colors());
    image.img = solid ? extracted() : whole;
    view.updateGLVolume();
  };

  const show = (volumes) => {
    for (const old of [...view.volumes]) view.removeVolume(old);
    [image, labels] = volumes;
    whole = image.img;
    labels.setColormapLabel(colors());
    view.addVolume(image);
    view.addVolume(labels);
    view.setOpacity(1, blend.value / 100);
    draw();
  };

  const open = async (files) => {
    const [segmentation, ...more] = [...files].sort((a, b) => b.name.includes("dseg") - a.name.includes("dseg"));
    if (!segmentation?.name.includes("dseg") || more.length !== 1) {
      where.textContent = "Choose two files together: the scan, and the segmentation (…_dseg.nii.gz).";
      return;
    }
    where.textContent = "Reading …";
    show([
      await niivue.NVImage.loadFromFile({ file: more[0], name: more[0].name }),
      await niivue.NVImage.loadFromFile({ file: segmentation, name: segmentation.name }),
    ]);
    where.textContent = `${image.dimsRAS.slice(1, 4).join(" × ")} voxels`;
    explorer.dataset.files = image.name;
  };

  const start = async () => {
    await view.attachToCanvas(canvas);
    const load = (name) => niivue.NVImage.loadFromBase64({ base64: explorer.dataset[name], name: `${name}.nii.gz` });
    show([await load("image"), await load("labels")]);
    view.setRenderAzimuthElevation(120, 15);
    blend.addEventListener("input", () => view.setOpacity(1, blend.value / 100));
    explorer.closest("section").addEventListener("click", ({ target }) => {
      if (target.closest("[data-index], [data-all]")) draw();
    });
    explorer.addEventListener("click", ({ target }) => {
      const chosen = target.closest("[data-view]");
      if (!chosen) return;
      for (const button of explorer.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button === chosen));
      solid = chosen.dataset.view === "brain";
      draw();
      view.setSliceType(solid ? view.sliceTypeRender : view.sliceTypeMultiplanar);
    });
    explorer.querySelector("[data-files]").addEventListener("change", ({ target }) => {
      open(target.files).catch((error) => { where.textContent = `These files cannot be shown: ${error.message}`; });
      target.value = "";
    });
    explorer.dataset.ready = "yes";
  };
  start().catch((error) => { where.textContent = `The viewer cannot start: ${error.message}`; });
}

for (const explorer of document.querySelectorAll(".explorer")) {
  explorer.addEventListener("toggle", () => explore(explorer), { once: true });
}
