use tlkit::Result;
use tlkit::audit::{FleetPlan, PlanOptions, plan as project, rates, usd};

use super::params::shape;
use crate::command::args::Plan;
use crate::command::output::{Outcome, Output, bytes, count, fields, percent, table};

pub(crate) fn plan(args: &Plan, output: &Output) -> Result<Outcome> {
    let shape = shape(&args.model)?;
    let mut options = PlanOptions::new(args.users, shape);
    options.tasks = args.tasks;
    options.rank = args.rank;
    options.dtype = args.dtype;
    options.prices = args.prices.prices();
    if let Some(adapter) = &args.like {
        options.rates = rates(adapter)?;
    }
    let report = project(&options)?;
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

fn text(plan: &FleetPlan) -> String {
    let prices = &plan.prices;
    let head = fields(&[
        ("users", count(plan.users)),
        ("tasks each", count(plan.tasks)),
        ("adapters", count(plan.adapters)),
        ("rank, dtype", format!("{}, {}", plan.rank, plan.dtype)),
        (
            "prices",
            format!(
                "{} USD for a GB and month, {} USD for 1000 requests, {} a month",
                prices.gb_month,
                prices.thousand_requests,
                count(prices.requests)
            ),
        ),
    ]);
    let codes = plan.coded.iter().map(|form| {
        vec![
            form.name.clone(),
            format!("{:.2} bits", form.bits),
            bytes(form.adapter_bytes),
            bytes(form.fleet_bytes),
            percent(form.share_of_lora),
            bytes(form.next_task_bytes),
            bytes(form.next_user_bytes),
            "0 B".to_owned(),
            usd(form.bill.total),
        ]
    });
    let rows = plan.forms.iter().map(|form| {
        vec![
            form.method.to_owned(),
            count(form.parameters),
            bytes(form.adapter_bytes),
            bytes(form.fleet_bytes),
            percent(form.share_of_lora),
            bytes(form.next_task_bytes),
            bytes(form.next_user_bytes),
            bytes(form.shared_bytes),
            usd(form.bill.total),
        ]
    });
    let header = [
        "method",
        "parameters",
        "adapter",
        "fleet",
        "of LoRA",
        "next task",
        "next user",
        "shared",
        "USD a month",
    ];
    let table = table(&header, &[1, 2, 3, 4, 5, 6, 7, 8], codes.chain(rows));
    let coded = match plan.coded.first() {
        Some(_) => {
            "coded-1, -5, -10: lora at an error of 1, 5, 10 % of its updates, in as many bits a number as that adapter takes."
        }
        None => {
            "lora coded at an error of 1, 5, 10 %: an adapter's singular values say how small, which --like ADAPTER measures."
        }
    };
    format!(
        "{head}\n{table}\n\nAll but lora are other adapters than LoRA's: training them costs quality that a plan cannot \
         measure.\nshared: frozen A and B, if kept once as tensors; as seeds they take nothing.\n\
         {coded}\n"
    )
}
