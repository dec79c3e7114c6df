// スライド s の、見えている字の [下の端, 右の端, いちばん小さい字（px）, 欄外の上の端]。
(s) => {
  const inside = ":scope > :not(footer):not(aside)";
  const seen = [...s.querySelectorAll(`${inside}, ${inside} *`)].filter((e) => e.getClientRects().length);
  const box = seen.map((e) => e.getBoundingClientRect());
  const sizes = seen.map((e) => parseFloat(getComputedStyle(e).fontSize));
  const floor = s.querySelector("footer").getBoundingClientRect().top;
  return [Math.max(...box.map((b) => b.bottom)), Math.max(...box.map((b) => b.right)), Math.min(...sizes), floor];
}
