"""The demonstration: the whole product on embedded defaults, as real processes that are really killed."""
