"""An example of an Airflow DAG (2.8 or newer): retrain every night, on the week that just ended.

A day's run names its window, so clearing it is safe: what was done is not done again. A run of
days that the current version has learnt from publishes nothing, so a backfill is skipped as soon as
a newer day is served; let days run in their order. A refusal by the gate and nothing new are shown
as skipped; a run that failed is tried again and goes on where it stopped.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG
from airflow.operators.bash import BashOperator

with DAG(
    dag_id="dinserve_retrain",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
    tags=["dinserve"],
) as dag:
    retrain = BashOperator(
        task_id="retrain",
        bash_command=(
            "python -m training retrain --repository /srv/dinserve/repository "
            "--logs /srv/dinserve/logs --to {{ data_interval_start | ds }} --window-days 7"
        ),
        skip_on_exit_code=[10, 11],
        execution_timeout=timedelta(hours=6),
        do_xcom_push=True,  # the last line on stdout: the outcome as JSON
    )
