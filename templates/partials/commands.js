// The commands that open a scan with its labels, for a shell in the folder of the page.
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

function viewerCommands(image, labels) {
  const lut = `${labels}:colormap=lut:lut=seg-siam_freesurfer.txt:opacity=0.4`;
  return [
    ["freeview", "-v", image, lut],
    ["itksnap", "-g", image, "-s", labels, "-l", "seg-siam_itksnap.txt"],
  ].map((words) => words.map(quoted).join(" "));
}

function showCommands(box) {
  box.replaceChildren(...viewerCommands(box.dataset.image, box.dataset.labels).map((command) => {
    const line = document.createElement("p");
    const code = document.createElement("code");
    code.textContent = command;
    const copy = document.createElement("button");
    copy.type = "button";
    copy.textContent = "Copy";
    copy.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(command);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Selected"; // the browser lets no page write to the clipboard
      }
    });
    line.append(code, copy);
    return line;
  }));
}

for (const box of document.querySelectorAll("[data-commands]")) if (box.dataset.image) showCommands(box);
