use tlkit::{Code, Error, Result};

use crate::args::Demo;
use crate::output::{Outcome, Output};

pub(crate) fn demo(_args: &Demo, _output: &Output) -> Result<Outcome> {
    Err(Error::new(Code::Usage, "not yet"))
}
