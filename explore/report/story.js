// A request's story in words: when it waited, was served, was off the device, and what these were made of.
// What comes from outside only ever becomes text.

function stretches({ table, slices }, r) {
  const found = [];
  let begun = false;
  for (let i = slices.first[r]; i < slices.first[r] + table.count[r]; i += 1) {
    const name = table.states[slices.kind[i]], from = slices.begin[i];
    const to = i + 1 < slices.first[r] + table.count[r] ? slices.begin[i + 1] : slices.end[r];
    begun = begun || name === 'prefill' || name === 'decode';
    const away = ['parked', 'swap-out', 'swap-in'].includes(name);
    const what = !begun ? 'waits' : away ? 'off the device' : 'served';
    if (!found.length || found[found.length - 1].what !== what) found.push({ what, from, to, parts: new Map() });
    const last = found[found.length - 1];
    last.to = to;
    last.parts.set(name, (last.parts.get(name) || 0) + to - from);
  }
  return found;
}

function parts(map) {
  return [...map].sort((a, b) => b[1] - a[1]).map(([name, t]) => `${name} ${length(t)}`).join(', ');
}

function tellStory(model, r, zoomTo) {
  const { table } = model, story = at('story');
  story.replaceChildren();
  if (r < 0) { element('p', 'No request was chosen.', story); return; }
  element('h3', table.request_id[r], story);
  const client = table.client_id_names[table.client_id[r]], reason = table.reason_names[table.reason[r]];
  const status = table.status_names[table.status[r]];
  const outcome = status === 'finished' ? `finished after ${length(table.e2e[r])}` : status + (reason ? `: ${reason}` : '');
  const first = table.ttft[r] === null ? 'no first token' : `first token after ${length(table.ttft[r])}`;
  element('p', `Arrived at ${seconds(table.begin[r], 1e8)}; ${first}; ${outcome}; preempted ${table.preemptions[r] === 1 ? 'once' : `${table.preemptions[r]} times`}.`
    + ` Turn ${table.turn[r]} of ${table.session_id_names[table.session_id[r]]}${client === null ? '' : `, client ${client}`};`
    + ` ${table.input_tokens[r]} prompt tokens, ${table.cached_tokens[r]} of them kept from before; ${table.output_tokens[r]} output tokens.`, story);
  const list = element('ol', undefined, story);
  const all = stretches(model, r), sum = new Map();
  for (const one of all) for (const [name, t] of one.parts) sum.set(name, (sum.get(name) || 0) + t);
  for (const one of all.slice(0, 100)) {
    element('li', `+${length(one.from - table.begin[r])}: ${one.what} ${length(one.to - one.from)} (${parts(one.parts)})`, list);
  }
  if (all.length > 100) element('p', `and ${all.length - 100} more stretches`, story);
  element('p', `Together: ${parts(sum)}.`, story);
  const button = element('button', 'Zoom to it', story);
  button.type = 'button';
  button.addEventListener('click', () => zoomTo(r));
}
