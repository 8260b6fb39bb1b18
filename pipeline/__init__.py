"""What happens around a network, in rooms, one step to a file, named after the step."""

from pipeline.common.out_of_memory import stop_where_memory_cannot_suffice

# Here, because the modules that follow load the libraries, some of which cannot even fail properly.
stop_where_memory_cannot_suffice()
