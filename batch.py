"""One ComfyUI graph over many pictures; `python batch.py --help` says how. Needs what ComfyUI's own environment has."""

try:
    from tools.batch import main
except ModuleNotFoundError as error:
    raise SystemExit(
        f"batch.py needs {error.name}: run it with the Python that runs ComfyUI, or pip install aiohttp filelock tqdm."
    ) from error

if __name__ == "__main__":
    raise SystemExit(main())
