"""Writes speech.wav: a sentence of espeak-ng's, silence, another, silence; 16 kHz, mono, 16 bit.

Needs espeak-ng and NumPy: python3 examples/data/models/speech.py
"""

import io
import pathlib
import subprocess
import wave

import numpy as np

RATE = 16000
# Samples of the interpolating function on each side, at the lower rate.
TAPS = 16


def speak(text, voice):
    made = subprocess.run(["espeak-ng", "-v", voice, "-s", "165", "--stdout", text], capture_output=True, check=True)
    with wave.open(io.BytesIO(made.stdout)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        return resample(samples, file.getframerate())


def resample(samples, rate):
    """By a sinc under Hann's window, cut off at the lower of both rates."""
    count = len(samples) * RATE // rate
    scale = min(1, RATE / rate)
    at = np.arange(count) * rate / RATE
    half = int(np.ceil(TAPS / scale))
    near = np.floor(at).astype(int)[:, None] + np.arange(-half + 1, half + 1)
    distance = near - at[:, None]
    weights = scale * np.sinc(scale * distance) * (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / half, -1, 1)))
    padded = np.concatenate([np.zeros(half), samples, np.zeros(half + 1)])
    return (padded[near + half] * weights).sum(1)


def main():
    noise = np.random.default_rng(1)
    pause = lambda seconds: np.zeros(int(seconds * RATE))
    first = speak("Six strides make a window.", "en-us")
    second = speak("Nothing is copied.", "en-gb")
    samples = np.concatenate([pause(0.4), first, pause(0.7), second, pause(0.4)])
    # Silence as a microphone hears it.
    samples = samples + noise.normal(0, 2e-4, len(samples))
    assert len(samples) <= 5 * RATE, len(samples) / RATE
    with wave.open(str(pathlib.Path(__file__).with_name("speech.wav")), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    print(len(samples) / RATE, "seconds")


main()
