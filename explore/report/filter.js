// Shows only the points and rows that fit the chosen values. Without it everything is shown.

const tools = document.getElementById('filters');
const choices = [...tools.querySelectorAll('select')];
const parts = [...document.querySelectorAll('[data-knobs]')].map((part) => [part, part.dataset.knobs.split(',')]);
const rows = parts.filter(([part]) => part.tagName === 'TR');

function apply() {
  for (const [part, values] of parts) {
    const fits = choices.every((choice, i) => choice.value === '' || choice.value === values[i]);
    part.classList.toggle('hidden', !fits);
  }
  const shown = rows.filter(([part]) => !part.classList.contains('hidden')).length;
  document.getElementById('count').textContent = `${shown} of ${rows.length} rows`;
}

for (const choice of choices) choice.addEventListener('change', apply);
tools.hidden = false;
apply();
