// Says to the page around it where things are, and whether text of the record was run.
addEventListener("load", () => setTimeout(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = e => e.parentElement && e.parentElement.closest(".scroll") !== null;
  const box = e => {
    const b = e.getBoundingClientRect();
    return { id: e.id, left: b.left, top: b.top, right: b.right, bottom: b.bottom };
  };
  const outside = [...document.body.querySelectorAll("*")]
    .filter(e => !scrolls(e))
    .filter(e => box(e).right > width + 1 || box(e).left < -1)
    .map(e => e.tagName + "#" + e.id);
  const boxes = [...document.querySelectorAll("section[id], svg[id]")].map(box);
  parent.postMessage({
    ran: window.ran !== undefined,
    viewport: width,
    page_width: document.documentElement.scrollWidth,
    page_height: document.documentElement.scrollHeight,
    outside,
    boxes,
  }, "*");
}, 50));
