//! `devices`: what this machine has to compute on, and how fast it is.

use serde::Serialize;
use tlkit::Result;
use tlkit::compute::{Gpu, GpuRates};

use crate::command::args::Devices;
use crate::command::output::{Outcome, Output, bytes, fields, percent};

/// What this machine has to compute on.
#[derive(Debug, Serialize)]
struct Report {
    devices: Vec<Device>,
    /// Why there is no GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    /// Compute capability, as 90 for 9.0; none for the processor.
    capability: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<GpuRates>,
}

pub(crate) fn devices(args: &Devices, output: &Output) -> Result<Outcome> {
    let mut report = Report {
        devices: vec![Device {
            name: "cpu".to_owned(),
            capability: None,
            rates: None,
        }],
        missing: None,
    };
    match Gpu::count() {
        Ok(count) => {
            for ordinal in 0..count {
                report.devices.push(device(ordinal, args)?);
            }
        }
        // None is what a machine without one has to say, not a failure.
        Err(e) => report.missing = Some(e.message().to_owned()),
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn device(ordinal: usize, args: &Devices) -> Result<Device> {
    let gpu = Gpu::open(ordinal, None)?;
    let rates = match args.measure {
        true => {
            let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            let ranks: Vec<usize> = args.ranks.iter().copied().map(number).collect();
            Some(gpu.measure((number(args.rows), number(args.cols)), &ranks)?)
        }
        false => None,
    };
    Ok(Device {
        name: gpu.label(),
        capability: Some(gpu.capability()),
        rates,
    })
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for device in &report.devices {
        match device.capability {
            Some(c) => lines.push(format!(
                "{}, compute capability {}.{}",
                device.name,
                c / 10,
                c % 10
            )),
            None => lines.push(device.name.clone()),
        }
        if let Some(rates) = &device.rates {
            let a_second = |rate: f64| format!("{}/s", bytes(rate as u64));
            let mut pairs = vec![
                ("to the device", a_second(rates.to_device)),
                ("from the device", a_second(rates.from_device)),
                (
                    "copy within",
                    format!("{} read and written", a_second(rates.copy)),
                ),
            ];
            pairs.extend(rates.merge.iter().map(|m| {
                let of_copy = percent(m.of_copy);
                (
                    "merge",
                    format!("rank {}: {}, {of_copy} of a copy", m.rank, a_second(m.rate)),
                )
            }));
            lines.push(fields(&pairs));
        }
    }
    if let Some(missing) = &report.missing {
        lines.push(format!("no GPU: {missing}"));
    }
    lines.join("\n")
}
