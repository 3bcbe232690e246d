"""The bundled model's training: procedural data, shapes, losses, curriculum, evaluation."""
