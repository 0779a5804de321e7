"""The picture of the rank map in README and docs, from the report of a run:

    rankwise demo
    rankwise train runs/demo/config.yaml --output runs/map --method.target_rank 4 --data.max_length 32 \
        --data.max_train_rows 1000 --data.max_validation_rows 200 --training.steps 300 --training.batch_size 8
    python dev/picture.py runs/map docs/images/rank-map.png

It needs playwright and Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from rankwise.report.page import write_report


def main(run: Path, picture: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        write_report([run], page_file)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1000, "height": 900}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        page.locator("figure:has(#rank-map)").screenshot(path=picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
