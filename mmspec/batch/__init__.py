"""Many documents or prompts, answered overnight.

1. `work`    files, folders and JSONL -> Tasks, one after the other
   `posted`  lines of OpenAI's batch files among them, by the server's forms
2. `ledger`  answers -> a JSONL file that a killed run goes on with
3. `run`     both and an engine, and what became of it
"""

from mmspec.batch.ledger import Ledger
from mmspec.batch.run import Tally, run_batch
from mmspec.batch.work import Task, count_tasks, find_inputs, read_tasks

__all__ = [
    "Ledger",
    "Tally",
    "Task",
    "count_tasks",
    "find_inputs",
    "read_tasks",
    "run_batch",
]
