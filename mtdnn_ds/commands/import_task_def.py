"""`import-task-def`: an mt-dnn task definition as a recipe (mt_dnn/import_task_def.py)."""

from mtdnn_ds.mt_dnn.import_task_def import run as run
