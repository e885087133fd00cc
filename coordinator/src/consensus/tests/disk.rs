//! One member over the in-memory stores, driven by hand.
