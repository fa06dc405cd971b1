// A slider beside each number of the form for a new job, up to what the largest machine here has. What is
// sent is the field's text: empty as long as nobody touches either.

for (const field of document.querySelectorAll("input[data-most]:not([type=file])")) {
  const most = Number(field.dataset.most), slider = document.createElement("input");
  if (!(most > 1)) continue;
  Object.assign(slider, { type: "range", min: 0, max: most, step: 1 });
  slider.setAttribute("aria-label", `${field.name} slider`);
  slider.value = /^\d+$/.test(field.value || field.placeholder) ? field.value || field.placeholder : 0;
  slider.addEventListener("input", () => { field.value = slider.value; });
  field.addEventListener("input", () => { if (/^\d+$/.test(field.value)) slider.value = field.value; });
  field.after(slider);
}
