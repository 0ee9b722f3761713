"""The main job from end to end in minutes: `pocketclip quickstart`."""
