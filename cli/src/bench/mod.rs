use crate::results::Results;
use anyhow::Result;
pub fn quick() -> Result<Results> {
    anyhow::bail!("later")
}
