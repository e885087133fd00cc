//! What steps do. Each makes an upper folder over the layers below; the engine makes it a layer.

pub mod copy;
pub mod run;
