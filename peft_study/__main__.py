"""`python -m peft_study` is `peft-study`."""

from peft_study.cli import main

if __name__ == "__main__":
    main()
