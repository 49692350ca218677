"""The stages of the model factory as functions: from files of events to a published version, each of declared inputs to
one value. Where values lie, when a stage is asked and what is kept is `ops/pipeline`'s."""
