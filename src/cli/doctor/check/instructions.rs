//! Every instruction that the kernels write in assembly, by itself.

use super::{Check, Row};
use crate::Result;
use crate::tensor::cuda::conformance;

pub(super) fn run(check: &mut Check) -> Result<()> {
    for finding in conformance::run(&check.gpu)? {
        let inexact = finding.bound > 0.0;
        let (error, bound) = (inexact.then_some(finding.worst), inexact.then_some(finding.bound));
        check.row(Row { name: format!("instruction {}", finding.name), ok: finding.passes(), error, bound, failure: None })?;
    }
    Ok(())
}
