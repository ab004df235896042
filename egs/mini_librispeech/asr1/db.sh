# shellcheck shell=bash
# Where LibriSpeech is: the folder that holds train-clean-5, dev-clean and test-clean
# (official layout; .flac, .wav or .opus). Empty: downloaded from openslr.org.
LIBRISPEECH=${LIBRISPEECH:-}
