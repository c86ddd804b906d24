//! Every instruction that the kernels write in assembly, by itself. A line is written as soon as it is known: where an instruction hangs, the one before it is
//! the last.

use super::{Check, Row};
use crate::Result;
use crate::tensor::cuda::conformance;

pub(super) fn run(check: &mut Check) -> Result<()> {
    let gpu = check.gpu.clone();
    for of in conformance::checks(&gpu) {
        let finding = of(&gpu)?;
        let inexact = finding.bound > 0.0;
        let (error, bound) = (inexact.then_some(finding.worst), inexact.then_some(finding.bound));
        let note = (finding.informs && finding.passes() && finding.different > 0)
            .then(|| format!("other bits in {} of {}", finding.different, finding.results));
        check.row(Row { name: format!("instruction {}", finding.name), ok: finding.passes(), error, bound, failure: None, note })?;
    }
    if !gpu.is_hopper() {
        check.skip("instructions of Hopper", "not of this device, or its driver makes no tensor maps")?;
    }
    Ok(())
}
