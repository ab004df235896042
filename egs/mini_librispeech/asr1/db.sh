# shellcheck shell=bash
# Folder with train-clean-5, dev-clean and test-clean of LibriSpeech (official layout;
# .flac, .wav or .opus). If empty, the recipe downloads them from openslr.org.
LIBRISPEECH=${LIBRISPEECH:-}
