"""Training code: draft heads for any target, and the small model that is bundled with mmspec."""
