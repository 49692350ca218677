"""`python -m tests.pictures.boards`: TensorBoard's pages, as the documents show them.

A made-up shop (seeded), a search of a few trials over its examples, one network more for the projector; then Debian's
Chromium looks at each page of TensorBoard. PNG of few colours, PICTURE_BYTES_MAX each. A page whose plugin is not
installed is said so, and has no picture.
"""

import argparse
import asyncio
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import async_playwright

from ebbtide.ops.console import steps
from ebbtide.ops.pipeline.tune import tune
from tests.support.factory import TRAIN, runner, write_config, write_events
from tests.support.servers.tensorboard import Ask, tensorboard

OUT = Path(__file__).parents[2] / "ops" / "pipeline" / "pictures"
PICTURE_BYTES_MAX = 60_000
TRIALS, RUN = 3, "training"
WIDTH, HEIGHT, COLOURS = 1100, 700, 64
DRAWN_MS = 6_000
"""Until a page has drawn what it fetched; the projector takes the longest."""
PAGES = {
    "scalars": "scalars", "histograms": "histograms", "graph": f"graphs&run={RUN}", "projector": "projector",
    "hparams": "hparams", "profile": "profile",
}  # fmt: skip
PLUGINS = {"graph": "graphs"}


def write_boards(folder: Path, log_dir: Path) -> None:
    """What a search and a training leave in `log_dir`."""
    train = {
        **TRAIN, "epochs_max": 6, "network": {"units": 16, "embed": 4, "dense": [16]}, "log_dir": str(log_dir)
    }  # fmt: skip
    write_events(folder / "events")
    run = runner(write_config(folder, train=train))
    tune(run, TRIALS, log_dir, lambda _: None)
    from ebbtide.model.fitting.board import project
    from ebbtide.model.fitting.fit import Trainer

    prepared, config = run.value("transform"), run.plan.config
    rows, later = prepared.train, prepared.calibration
    trained = Trainer(run.plan.spec, config, len(rows)).fit(rows, config.epochs_max, watched=later, run=RUN)
    project(log_dir, run.plan.spec, trained.network, prepared.test)


def small(png: bytes) -> bytes:
    """The same picture in few colours."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


async def take(ask: Ask, address: str, out: Path) -> dict[str, int]:
    """Bytes of each page's picture."""
    binary = shutil.which("chromium")
    if binary is None:
        raise SystemExit("the pictures are taken in a real browser: apt-get install chromium")
    there, made = ask("plugins_listing"), {}
    async with async_playwright() as playwright:
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"]
        browser = await playwright.chromium.launch(executable_path=binary, args=flags)
        for name, page_of in PAGES.items():
            if PLUGINS.get(name, name) not in there:
                print(f"{name}: TensorBoard has no such page here, its plugin is not installed")
                continue
            page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            await page.goto(f"{address}/#{page_of}")
            await page.wait_for_timeout(DRAWN_MS)
            picture = small(await page.screenshot())
            (out / f"{name}.png").write_bytes(picture)
            made[name] = len(picture)
            await page.close()
        await browser.close()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="a folder (default %(default)s)")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ebbtide-boards-") as folder, steps() as say:
        say("a search over a made-up shop")
        log_dir = Path(folder) / "boards"
        write_boards(Path(folder), log_dir)
        say("pictures of its pages")
        with tensorboard(log_dir, RUN) as ask:
            made = asyncio.run(take(ask, ask.address, asked.out))
    for name, size in made.items():
        print(f"{name}: {size:,} bytes")
    if large := [name for name, size in made.items() if size > PICTURE_BYTES_MAX]:
        raise SystemExit(f"larger than {PICTURE_BYTES_MAX:,} bytes: {', '.join(large)}")


if __name__ == "__main__":
    main()
