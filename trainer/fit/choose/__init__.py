"""Choose among finished arms: intervals, seed noise and the choice."""
