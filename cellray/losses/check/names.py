"""What a loss is checked for, by name; a study's `allow:` lists these names."""

CHECKS: dict[str, str] = {
    "probabilities": "activation:check_probabilities",
    "double_activation": "activation:check_double_activation",
    "activation": "activation:check_activation",
    "floor": "activation:check_floor",
    "weights": "weights:check_weights",
    "words": "inputs:check_words",
    "maps": "inputs:check_maps",
    "wrong_class": "whole_cells:check_wrong_class",
    "missed_or_spurious": "whole_cells:check_missed_or_spurious",
    "object_size": "whole_cells:check_object_size",
    "masks": "whole_cells:check_masks",
    "finite": "numerics:check_finite",
    "precision": "inputs:check_precision",
    "reduction": "numerics:check_reduction",
    "invariance": "numerics:check_invariance",
    "gradient": "numerics:check_gradient",
}
"""In order: where each is, a function of a loss that yields verdicts; to know the names, none has to be imported."""
