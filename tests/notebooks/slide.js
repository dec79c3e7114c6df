// スライド s の [下に収まるか, 右に収まるか, いちばん小さい字（1280×720 での px。出どころと小さな印は除く）]。
(s) => {
  const inside = ":scope > :not(footer):not(.src)";
  const seen = [...s.querySelectorAll(`${inside}, ${inside} *`)].filter((e) => e.getClientRects().length);
  const box = seen.map((e) => e.getBoundingClientRect());
  const stage = document.getElementById("stage").getBoundingClientRect(), scale = stage.width / 1280;
  const written = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && !e.closest("small");
  const size = (e) => {
    const svg = e.closest("svg"), size = parseFloat(getComputedStyle(e).fontSize);
    return svg ? (size * svg.getBoundingClientRect().width) / scale / svg.viewBox.baseVal.width : size;
  };
  const floor = (s.querySelector(".src") || s.querySelector("footer")).getBoundingClientRect().top;
  const low = Math.max(...box.map((b) => b.bottom)), right = Math.max(...box.map((b) => b.right));
  return [low <= floor + 1, right <= stage.right + 1, Math.min(...seen.filter(written).map(size))];
}
