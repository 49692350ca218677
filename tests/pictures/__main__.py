"""`python -m tests.pictures`: the page at `/`, as the documents show it: desk and phone, light and dark.

A shop that is made up (seeded; `scene.py`) is worked off by the real pipeline in this process, at real time, for a
minute; then Debian's Chromium looks at its page. WebP, at most TOTAL_BYTES_MAX together: what is larger is an error,
not a large repository.
"""

import argparse
import asyncio
import io
import re
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from playwright.async_api import Browser, async_playwright, expect

from ebbtide.ops.console import steps
from tests.pictures.scene import shop

OUT = Path(__file__).parents[2] / "ops" / "page" / "pictures"
TOTAL_BYTES_MAX = 300_000
QUALITY = 80
ALERTS_WANTED = 8


class Picture(NamedTuple):
    """scale: pixels of the picture for one of the page."""

    name: str
    width: int
    height: int
    scale: float
    scheme: Literal["light", "dark"]


PICTURES = (
    Picture("desk-light", 1200, 1080, 1.0, "light"),
    Picture("desk-dark", 1200, 1080, 1.0, "dark"),
    Picture("phone-light", 390, 844, 1.5, "light"),
    Picture("phone-dark", 390, 844, 1.5, "dark"),
)


async def taken(browser: Browser, address: str, picture: Picture) -> bytes:
    """The page with somebody chosen, as WebP."""
    context = await browser.new_context(
        viewport={"width": picture.width, "height": picture.height},
        device_scale_factor=picture.scale,
        color_scheme=picture.scheme,
    )
    page = await context.new_page()
    await page.goto(address)
    await page.wait_for_selector(f"#alerts li:nth-child({ALERTS_WANTED})")
    await page.locator("#worst button").nth(2).click()
    await expect(page.locator("#curve path")).to_have_attribute("d", re.compile("^M"))
    await page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    await page.wait_for_timeout(1_500)
    image = Image.open(io.BytesIO(await page.screenshot()))
    await context.close()
    out = io.BytesIO()
    image.convert("RGB").save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


async def take(out: Path, seconds: float) -> int:
    """All of them, after so many seconds of business. Returns their bytes."""
    binary = shutil.which("chromium")
    if binary is None:
        raise SystemExit("the pictures are taken in a real browser: apt-get install chromium")
    total = 0
    async with shop() as address, async_playwright() as playwright:
        await asyncio.sleep(seconds)
        browser = await playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        for picture in PICTURES:
            made = await taken(browser, address, picture)
            (out / f"{picture.name}.webp").write_bytes(made)
            total += len(made)
        await browser.close()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="a folder (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=70.0, help="of business before (default %(default)s)"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with steps() as say:
        say(f"a shop works for {asked.seconds:.0f} s")
        total = asyncio.run(take(asked.out, asked.seconds))
    print(f"{len(PICTURES)} pictures, {total:,} bytes, in {asked.out}")
    if total > TOTAL_BYTES_MAX:
        raise SystemExit(f"that is more than {TOTAL_BYTES_MAX:,} bytes")


if __name__ == "__main__":
    main()
