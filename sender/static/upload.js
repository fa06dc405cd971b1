// Says before the upload that a file is too large; the sender would say it after.

const MIB = 2 ** 20;

for (const input of document.querySelectorAll("input[type=file][data-most]")) {
  input.addEventListener("change", () => {
    const size = input.files[0]?.size ?? 0, most = Number(input.dataset.most);
    const words = `This file has ${Math.ceil(size / MIB)} MiB; at most ${Math.floor(most / MIB)} are taken.`;
    input.setCustomValidity(size > most ? words : "");
    input.reportValidity();
  });
}
