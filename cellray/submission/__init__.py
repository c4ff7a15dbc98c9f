"""Studies sent to a cluster that runs them without this machine: Ray's Jobs API, or a RayJob of Kubernetes."""

from cellray.submission.check import check_cluster
from cellray.submission.jobs import connect_jobs, follow_job, running_job, submit_job
from cellray.submission.kubernetes import RESUBMISSIONS, Namespace
from cellray.submission.parcel import Parcel, pack
from cellray.submission.reports import copy_report, tar_report

__all__ = [
    "RESUBMISSIONS",
    "Namespace",
    "Parcel",
    "check_cluster",
    "connect_jobs",
    "copy_report",
    "follow_job",
    "pack",
    "running_job",
    "submit_job",
    "tar_report",
]
