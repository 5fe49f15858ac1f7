// Lays any choice of tissues over the slices; the label picture holds one index per pixel.
for (const viewer of document.querySelectorAll(".viewer")) {
  const canvas = viewer.querySelector("canvas");
  if (!canvas) continue;
  const toggles = [...viewer.querySelectorAll("[data-index]")];
  const opacity = viewer.querySelector("[data-opacity]");
  const all = viewer.querySelector("[data-all]");
  const labels = new Image();
  let indices = null;
  let zoom = 1;
  const draw = () => {
    if (!indices) return;
    const lookup = new Uint32Array(256);
    for (const toggle of toggles) {
      if (toggle.getAttribute("aria-pressed") !== "true") continue;
      const color = parseInt(toggle.dataset.color.slice(1), 16);
      // Canvas pixels are red, green, blue, alpha in memory order.
      lookup[Number(toggle.dataset.index)] = (255 << 24 | (color & 255) << 16 | (color & 0xff00) | color >> 16) >>> 0;
    }
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let at = 0; at < pixels.length; at += 1) pixels[at] = lookup[indices[4 * at]];
    context.putImageData(picture, 0, 0);
    canvas.style.opacity = opacity.value / 100;
    all.textContent = toggles.some((toggle) => toggle.getAttribute("aria-pressed") === "true") ? "No tissues" : "All tissues";
  };
  labels.onload = () => {
    [canvas.width, canvas.height] = [labels.naturalWidth, labels.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(labels, 0, 0);
    indices = context.getImageData(0, 0, canvas.width, canvas.height).data;
    draw();
    viewer.dataset.ready = "yes";
  };
  labels.src = canvas.dataset.tissues;
  opacity.addEventListener("input", draw);
  viewer.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    if (button.dataset.index) {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    } else if (button === all) {
      const none = toggles.every((toggle) => toggle.getAttribute("aria-pressed") !== "true");
      for (const toggle of toggles) toggle.setAttribute("aria-pressed", String(none));
    } else if (button.dataset.zoom) {
      zoom = Math.min(4, Math.max(1, zoom * (button.dataset.zoom > 0 ? 1.5 : 1 / 1.5)));
      viewer.querySelector(".layers").style.width = `${100 * zoom}%`;
    }
    draw();
  });
}
