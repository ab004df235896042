# shellcheck shell=bash
# Folder of train-clean-5, dev-clean and test-clean of LibriSpeech (official layout; .flac,
# .wav or .opus). Empty: the recipe downloads them from openslr.org.
LIBRISPEECH=${LIBRISPEECH:-}
