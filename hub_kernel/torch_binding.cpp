// csrc/ registers its op itself; what is missing is the entry that lets Python import the library.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
