"""`octavo up`: a ModelDeployment as processes on this machine.

plan.py decides (pure), process.py and redis_server.py run one process each, supervisor.py keeps all
of them alive and stops them in order, greet.py asks the first question.
"""
