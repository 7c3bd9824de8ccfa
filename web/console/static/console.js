// All script of the console besides htmx. Every page works without it.
'use strict';

// Trusted Types: the one policy that may turn text into HTML is htmx's, for answers of
// this server, in which html/template has escaped every foreign text. Code in
// attributes (hx-on, js:) is switched off: the content security policy forbids it anyway.
htmx.registerExtension('chancery', {
  init: api => {
    const rules = { createHTML: s => s, createScript: () => '' };
    const none = function () { throw new Error('no code in attributes'); };
    api.initSecurity(window.trustedTypes ? trustedTypes.createPolicy('htmx', rules) : rules, none, none);
  },
});

// Copy buttons are rendered disabled, so that none is pressed before it works.
function ready(within) {
  for (const b of within.querySelectorAll('button.copy[disabled]')) b.disabled = !navigator.clipboard;
  for (const t of within.querySelectorAll('time[datetime]:not([title])')) t.title = new Date(t.dateTime).toLocaleString(document.documentElement.lang, { dateStyle: 'medium', timeStyle: 'long' });
}

document.addEventListener('click', async e => {
  const button = e.target.closest('button.copy');
  if (!button) return;
  const text = button.parentElement.querySelector('code').textContent;
  await navigator.clipboard.writeText(text);
  button.dataset.copied = '';
  setTimeout(() => delete button.dataset.copied, 2000);
});

// "/" goes to the search field.
document.addEventListener('keydown', e => {
  if (e.key !== '/' || e.ctrlKey || e.metaKey || e.altKey || e.target.matches('input, textarea, select')) return;
  const field = document.querySelector('.search input');
  if (field) { e.preventDefault(); field.focus(); field.select(); }
});

document.addEventListener('htmx:after:swap', () => ready(document));
ready(document);
document.documentElement.dataset.ready = '';

// A page that came from another site leads on by itself, so that the browser sends our cookie.
const follow = document.querySelector('a[data-follow]');
if (follow) location.replace(follow.href);
