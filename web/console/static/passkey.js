// Ceremonies of passkeys (W3C WebAuthn Level 3). A form with data-passkey asks for one, puts
// the answer into its field "assertion", and is sent as any form is.
'use strict';
const publicKey = window.PublicKeyCredential;

function tell(form, word, detail) {
  const p = form.querySelector('.status');
  p.textContent = word ? p.dataset[word] + (detail ? ' (' + detail + ')' : '') : '';
  p.classList.toggle('problem', !!word && word !== 'waiting');
  if (word) form.dataset.state = word; else delete form.dataset.state;
}

async function options(form) {
  const init = form.dataset.passkey === 'create'
    ? { method: 'POST', body: new URLSearchParams({ secret: form.elements.secret.value }) } : {};
  const answer = await fetch(form.dataset.options, init);
  if (!answer.ok || !answer.headers.get('Content-Type').startsWith('application/json')) throw new Error('HTTP ' + answer.status);
  return answer.json();
}

async function ceremony(form) {
  const buttons = [...form.querySelectorAll('button')];
  for (const b of buttons) b.disabled = true;
  try {
    tell(form, 'waiting');
    let made;
    switch (form.dataset.passkey) {
      case 'create':
        made = await navigator.credentials.create({ publicKey: publicKey.parseCreationOptionsFromJSON(await options(form)) });
        break;
      case 'get':
        made = await navigator.credentials.get({ publicKey: publicKey.parseRequestOptionsFromJSON(await options(form)) });
        break;
      case 'vote':
        made = await navigator.credentials.get({ publicKey: await voteOptions(form) });
        break;
    }
    form.elements.assertion.value = JSON.stringify(made);
    form.submit();
  } catch (e) {
    for (const b of buttons) b.disabled = false;
    if (e.name === 'InvalidStateError') tell(form, 'already');
    else tell(form, e instanceof Differs ? 'differs' : 'failed', e.name === 'NotAllowedError' ? '' : e.message);
  }
}

document.addEventListener('submit', e => {
  if (!e.target.dataset.passkey) return;
  e.preventDefault();
  ceremony(e.target);
});

// What a page shows of a proposal must be what its bytes say, or nothing is signed.
class Differs extends Error {}

const utf8 = new TextDecoder('utf-8', { fatal: true });
const bytesOf = hex => Uint8Array.from(hex.match(/[0-9a-f]{2}/g) ?? [], h => parseInt(h, 16));
const hexOf = bytes => Array.from(bytes, b => b.toString(16).padStart(2, '0')).join('');

// digest is SHA-256(u8 length ‖ "chancery/<name>/v1" ‖ octets).
async function digest(name, ...parts) {
  const context = new TextEncoder().encode('chancery/' + name + '/v1');
  const whole = new Uint8Array(await new Blob([Uint8Array.of(context.length), context, ...parts]).arrayBuffer());
  return new Uint8Array(await crypto.subtle.digest('SHA-256', whole));
}

// shown writes text as the pages do: what could mislead is escaped.
function shown(text) {
  let out = '';
  for (const c of text) out += /^[\p{L}\p{Mc}\p{N}\p{P}\p{S} ]$/u.test(c) ? c : '\\u{' + c.codePointAt(0).toString(16) + '}';
  return out;
}

// decode reads a proposal: u16 tag ‖ u32 length ‖ value, tags 1 to 10 in order, no more.
function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = [];
  let at = 0;
  for (let tag = 1; tag <= 10; tag++) {
    if (at + 6 > bytes.length || view.getUint16(at) !== tag) throw new Differs('encoding');
    const n = view.getUint32(at + 2);
    at += 6;
    if (at + n > bytes.length) throw new Differs('encoding');
    values[tag] = bytes.subarray(at, at + n);
    at += n;
  }
  if (at !== bytes.length) throw new Differs('encoding');
  const acts = [];
  const list = new DataView(values[4].buffer, values[4].byteOffset, values[4].byteLength);
  for (let i = 0; i < values[4].length;) {
    const n = list.getUint16(i);
    acts.push(utf8.decode(values[4].subarray(i + 2, i + 2 + n)));
    i += 2 + n;
  }
  const time = v => new Date(Number(new DataView(v.buffer, v.byteOffset, 8).getBigUint64(0)) * 1000).toISOString().replace('.000Z', 'Z');
  return { action: utf8.decode(values[2]), parameters: hexOf(values[3]), acts, requester: utf8.decode(values[7]), from: time(values[9]), expires: time(values[10]) };
}

// voteOptions compares the page with the bytes and asks for a signature over the digest of
// the decision and these bytes.
async function voteOptions(form) {
  const shownAs = what => document.querySelector('[data-proposal=' + what + ']').textContent;
  const same = (what, is) => { if (shownAs(what) !== is) throw new Differs(what); };
  const bytes = bytesOf(shownAs('bytes').replace(/\s/g, ''));
  const p = decode(bytes);
  same('action', shown(p.action));
  same('requester', shown(p.requester));
  const times = document.querySelectorAll('[data-proposal=expires] time');
  if (times[0]?.getAttribute('datetime') !== p.expires || times[0].textContent !== p.expires.replace('T', ' ').replace('Z', ' UTC')) throw new Differs('expires');
  const acts = [...document.querySelectorAll('[data-proposal=act]')].map(e => e.textContent);
  if (acts.length !== p.acts.length || acts.some((a, i) => a !== shown(p.acts[i]))) throw new Differs('acts');
  const parameters = bytesOf(form.ownerDocument.querySelector('[data-proposal=parameters]').dataset.hex);
  same('parameters', shown(utf8.decode(parameters)));
  if (hexOf(await digest('parameters', parameters)) !== p.parameters) throw new Differs('parameters');
  const rows = [...document.querySelectorAll('[data-proposal=parameter]')];
  if (rows.length) { // a roster has a table of its changes instead
    const values = JSON.parse(utf8.decode(parameters));
    const text = v => typeof v === 'string' ? v : Array.isArray(v) && v.every(i => typeof i === 'string') ? v.join(', ') : JSON.stringify(v);
    const want = Object.keys(values).map(name => shown(name) + '\n' + shown(text(values[name]))).sort();
    if (want.join('\n\n') !== rows.map(r => r.dataset.name + '\n' + r.textContent).sort().join('\n\n')) throw new Differs('parameters');
  } else if (p.action !== 'change-roster') throw new Differs('parameters');
  const approval = hexOf(await digest('approval', Uint8Array.of(1), bytes));
  same('fingerprint', approval.match(/.{8}/g).join(' '));
  const challenge = await digest('approval', Uint8Array.of(Number(form.dataset.decision)), bytes);
  form.elements.digest.value = hexOf(challenge);
  return {
    challenge, rpId: form.dataset.rp, timeout: 120000, userVerification: 'required',
    allowCredentials: form.dataset.credentials.split(' ').filter(s => s).map(id => ({ type: 'public-key', id: bytesOf(id) })),
  };
}

for (const form of document.querySelectorAll('form[data-passkey]')) {
  const able = !!publicKey?.parseRequestOptionsFromJSON && window.isSecureContext;
  for (const b of form.querySelectorAll('button')) b.disabled = !able;
  if (!able) tell(form, 'unsupported');
}

// The secret of an enrolment link stands behind the #, which is sent nowhere; from here it
// goes in a form, and out of the address.
const enrol = document.getElementById('enrol-secret');
if (enrol && /^#[0-9a-f]{64}$/.test(location.hash)) {
  enrol.elements.secret.value = location.hash.slice(1);
  history.replaceState(null, '', location.pathname);
  enrol.submit();
}
