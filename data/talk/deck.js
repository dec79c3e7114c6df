// スライドの送りと、話し手のページ（#speaker）。二つの窓は postMessage で話す。時計はスライドの窓が持つので、
// 話し手の窓を閉じても、開き直せば続きから出る。スライドを読み直しても、sessionStorage から戻る。
const plan = JSON.parse(document.getElementById("plan").textContent);
const slides = [...document.querySelectorAll(".slide")], stage = document.getElementById("stage");
const spoken = plan.sections.flatMap((s, i) => s.slides.map((c) => ({ ...c, section: i })));
const clock = (t) => `${t < 0 ? "−" : ""}${Math.floor(Math.abs(t) / 60)}:${String(Math.floor(Math.abs(t) % 60)).padStart(2, "0")}`;
const kept = { get: (k) => { try { return sessionStorage.getItem(k); } catch { return null; } }, set: (k, v) => { try { sessionStorage.setItem(k, v); } catch {} } };
let began = Number(kept.get("began")) || 0, peer = null;
const numbered = (i) => (i < spoken.length ? `${i + 1} / ${spoken.length}` : `予備 ${i + 1 - spoken.length}`);  // 予備は想定問答
const at = () => slides.findIndex((s) => s.classList.contains("on"));
function show(n) {
  n = Math.min(Math.max(n, 0), slides.length - 1);
  slides.forEach((s, i) => s.classList.toggle("on", i === n));
  if (n > 0 && !began) kept.set("began", (began = Date.now()));
  history.replaceState(null, "", "#" + (n + 1));
  tell();
}
function tell() { if (peer && !peer.closed) peer.postMessage({ at: at(), began }, "*"); }
function fit() {
  const s = Math.min(innerWidth / 1280, innerHeight / 720);
  stage.style.transform = `scale(${s}) translate(-50%,-50%)`;
}
function key(e, go) {
  const step = { ArrowRight: 1, PageDown: 1, " ": 1, Enter: 1, ArrowLeft: -1, PageUp: -1 }[e.key];
  if (step) { go({ by: step }); e.preventDefault(); }
  else if (e.key === "Home") go({ to: 0 });
  else if (e.key === "End") go({ to: slides.length - 1 });
  else if (e.key === "q") go({ to: slides.findIndex((s) => s.dataset.id === "qa") });
}
function go(order) {
  if (order.reset) { kept.set("began", ""); began = 0; return show(0); }
  show(order.by ? at() + order.by : order.to);
}
function deck() {
  slides.forEach((s, i) => { s.querySelector("footer").textContent = numbered(i); });
  addEventListener("resize", fit);
  addEventListener("hashchange", () => show((parseInt(location.hash.slice(1)) || 1) - 1));
  addEventListener("message", (e) => { if (e.data.hello) { peer = e.source; tell(); } else if (e.data.go) go(e.data.go); });
  addEventListener("keydown", (e) => {
    if (e.key === "s") peer = open(location.href.split("#")[0] + "#speaker", "speaker", "width=1000,height=800");
    else key(e, go);
  });
  fit();
  show((parseInt(location.hash.slice(1)) || 1) - 1);
}
function speaker() {
  document.body.classList.add("speaker");
  const put = (id, text) => { document.getElementById(id).textContent = text; };
  let now = { at: 0, began: 0 };
  const send = (order) => opener && opener.postMessage({ go: order }, "*");
  const draw = () => {
    const slide = slides[now.at], cue = spoken.find((c) => c.id === slide.dataset.id) || { say: "（想定問答）", note: "", section: plan.sections.length - 1 };
    const place = spoken.indexOf(cue), section = plan.sections[cue.section], elapsed = now.began ? (Date.now() - now.began) / 1000 : 0;
    const due = place < 0 ? 60 * section.start : 60 * (cue.starts + cue.minutes);  // このスライドを終える予定
    const late = elapsed - due, box = document.getElementById("late");
    put("where", `${numbered(now.at)}　${section.title}`);
    put("left", clock(60 * plan.minutes - elapsed));
    put("late", now.began ? (late > 30 && place >= 0 ? `${clock(late)} 遅れ` : "予定どおり") : "最初のスライドを送ると始まります");
    box.classList.toggle("late", late > 60 && place >= 0);
    put("say", cue.say);
    put("note", cue.note || "");
    put("long", place < 0 ? "" : `このスライドは ${clock(60 * cue.minutes)} の見込み`);
    put("next", place < 0 || !spoken[place + 1] ? "" : `次: ${spoken[place + 1].say.slice(0, 60)}…`);
  };
  addEventListener("message", (e) => { if ("at" in e.data) { now = e.data; draw(); } });
  addEventListener("keydown", (e) => key(e, send));
  document.getElementById("back").onclick = () => send({ by: -1 });
  document.getElementById("forward").onclick = () => send({ by: 1 });
  document.getElementById("reset").onclick = () => send({ reset: true });
  setInterval(() => { if (opener) opener.postMessage({ hello: true }, "*"); draw(); }, 500);
  draw();
}
(location.hash === "#speaker" ? speaker : deck)();
