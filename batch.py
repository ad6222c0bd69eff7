"""One ComfyUI graph over many pictures; `python batch.py --help` says how. Needs what ComfyUI's own environment has."""

from tools.batch import main

if __name__ == "__main__":
    raise SystemExit(main())
